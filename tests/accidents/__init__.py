"""The forms that lessons call mended, under the catalogue of accidents."""
