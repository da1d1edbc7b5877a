"""The embedded benchmark as a task of lmms-eval."""
