// Package failpoint lets the fault tests end a server at named places of its
// code. In a build without the tag failpoints it does nothing.
package failpoint
