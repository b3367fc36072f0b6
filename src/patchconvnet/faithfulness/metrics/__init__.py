"""What measures a map: deletion and insertion, ROAD, localisation, robustness."""
