"""May beam or motion be?  An independent system that can only withhold; standard library only."""
