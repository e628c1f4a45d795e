"""What evaluations of several runs say of each other, question by question."""
