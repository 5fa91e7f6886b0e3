package main

import "errors"

func newProduct() (arm, error) { return nil, errors.New("product arm pending") }
