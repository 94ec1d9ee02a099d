"""Files that are complete or not there, checked when they are read, and never another program's."""
