"""What runs inside of a sandbox. These files import the standard library and each other only."""
