"""Tools of developers, which no server needs."""
