"""Files: MRC stacks, STAR tables, the particle set they describe, and the journal for resuming."""
