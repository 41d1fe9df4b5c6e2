"""The built-in techniques: one file each, registered by entry points exactly as a third party's."""
