package cli

import (
	"bufio"
	"fmt"
	"strings"
)

// confirm asks before something is destroyed: on a terminal for the name of
// what is about to change, elsewhere it demands --yes, so that a script never
// hangs and never destroys by accident. deed is what would be done: "delete
// route/x"; try the command that, with --yes, does it.
func (a *app) confirm(yes bool, deed, name, try string) error {
	if yes {
		return nil
	}
	if !a.env.StdinTTY {
		return &usageError{
			err: fmt.Errorf("will not %s without a confirmation, and there is no terminal to ask on", deed),
			try: try + " --yes",
		}
	}
	fmt.Fprintf(a.env.Stderr, "About to %s. Type %q to go on: ", deed, name)
	line, err := bufio.NewReader(a.env.Stdin).ReadString('\n')
	if err != nil && line == "" {
		fmt.Fprintln(a.env.Stderr)
		return usagef("no answer; nothing was changed")
	}
	if strings.TrimSpace(line) != name {
		return usagef("the answer is not %q; nothing was changed", name)
	}
	return nil
}
