"""Learning one task at a time from a user's own file, whenever it comes."""
