"""Shape reproductions: the papers' claims in small, as paired experiments over seeds."""
