"""A converted program read and rewritten: what it quantizes, on which grids, and what could be besides."""
