"""Golden images: recipes, building, and the store that published images live in."""
