"""`llmd doctor`: the host looked over. Verdicts are pure (cards, ground, doors); rounds gathers what they judge."""
