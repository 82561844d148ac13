"""Tasks: what is predicted from what."""
