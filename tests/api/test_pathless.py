"""The tests of the API that are about volumes' bytes, once more where no volume is a file of this host.

The tests are those of the modules named here, unchanged; only the repositories are of another format. The whole
suite runs on it by ``DISKYARD_TEST_FORMAT=pathless-1.0``.
"""
