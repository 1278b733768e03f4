"""``python -m diskyard.cli`` is the program ``diskyard``."""

from diskyard.cli import main

main()
