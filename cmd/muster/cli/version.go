package cli

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// buildVersion is what `muster version` prints.
type buildVersion struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func readBuildVersion() buildVersion {
	v := buildVersion{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	return v
}

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  muster version\n  muster version -o json",
		Args:    noArgs,
	}
	a.outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		v := readBuildVersion()
		return a.print(v, func(t *table) {
			t.text("muster %s (%s, %s)", v.Version, v.Go, v.Platform)
			if v.Commit != "" {
				t.text("commit %s", v.Commit)
			}
		})
	}
	return cmd
}
