"""What a configuration may say: each section with its rules, and how its values are read."""
