"""What several chapters share: data, models, training loops and scale profiles.

Nothing in the package imports this subpackage: it stands above the methods, beside the notebooks, and
needs scikit-learn for its data. Nothing is downloaded: all data ships with a dependency or with Python.
"""
