"""From a campaign file to trials, a journal and records."""
