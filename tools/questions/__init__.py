"""The question bank of the course: read, checked, and written for Moodle, Canvas and Jupyter, and into the chapters.

The source is book/teaching/questions/NN_name.yml, one file a chapter; book/teaching/index.md tells how to edit it.
"""
