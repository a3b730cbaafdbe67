"""What is measured, how, and what came of it; programs of the repository, not of the package."""
