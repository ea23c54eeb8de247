"""The tabs of the page, one module each; `build(page)` makes a tab."""
