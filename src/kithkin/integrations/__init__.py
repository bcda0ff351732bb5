"""kithkin inside other programs. Each module imports its program only when it is used."""
