"""The editing methods on text classification and multiple choice: what does each give outside editing?"""
