"""A benchmark of rendered scenes, and a small LLaVA-NeXT trained on it that ships in the package."""
