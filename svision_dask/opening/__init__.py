"""From what a user names to a volume: the format found, channels and times chosen."""
