"""Headers of image files, read and written without QEMU."""
