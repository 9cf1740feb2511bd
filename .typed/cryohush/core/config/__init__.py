"""What a user can set: pydantic models that refuse unknown keys, and their loading from YAML."""
