"""`plsc report`: one HTML page on one training run, or on several beside each other.

    runs.py        what a run's folder holds
    charts.py      its numbers as SVG
    pictures.py    the hardest pairs and the worst classes, where their images are at hand
    page.py        the page, by template.html

The page holds everything: no script, no request, pictures as data. What comes from files is text, and is escaped.
"""
