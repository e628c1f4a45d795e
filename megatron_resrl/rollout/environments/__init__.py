"""What answers the policy between its turns: tools and games, and the player of episodes."""
