"""How fast this project is, beside TRL's own trainers and beside what the machine could do."""
