"""Where trials run: this machine (`local`), several devices (`devices`), or a Ray cluster (`ray`)."""
