"""List, fetch or show the data of a stream."""
