"""The web page: look at what a method throws away, and ask what is left."""
