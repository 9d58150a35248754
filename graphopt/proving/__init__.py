"""Translation validation: what is known of every edit of an exact pass, and by which means."""
