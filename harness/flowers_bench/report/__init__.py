"""Reports: everything here is computed from the run store, never typed."""
