//! Labelled images from the formats that data sets come in.
