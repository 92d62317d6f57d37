"""What `rlalign` can be asked: one file a kind of question. The work is done elsewhere."""

# For a command whose settings are written --section.key=value and read by rlalign.config.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
