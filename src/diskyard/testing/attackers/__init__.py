"""Programs that attack Diskyard for minutes or hours: storms, random operations beside a model, races."""
