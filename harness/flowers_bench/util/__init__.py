"""Small helpers without any knowledge of trials."""
