"""Pictures that the suite draws itself."""
