"""TRL's own trainers on the same configuration and rewards."""
