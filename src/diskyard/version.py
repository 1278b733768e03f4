"""The version of this program."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("diskyard")
except PackageNotFoundError:  # run from a source tree that was not installed
    VERSION = "0"
