"""What two or more methods use; nothing here knows a method."""
