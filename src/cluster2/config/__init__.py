"""The options: their declaration and the types of their values. Pure."""
