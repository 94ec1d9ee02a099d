"""The version of brecq: of the package, of the files it writes, of `brecq --version`."""

__version__ = "0.1.0"
