// ReDoc takes its colours once, when it begins, and as values: it mixes others from them.
"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => location.reload());

if (dark.matches) {
  const page = "#15181d", panel = "#1c2026", line = "#363d47", text = "#eceff3", muted = "#a7b0bd", link = "#85c3ee";
  const element = document.querySelector("redoc");
  const theme = JSON.parse(element.getAttribute("theme"));
  element.setAttribute("theme", JSON.stringify({
    colors: {
      primary: { main: link }, success: { main: "#72d39a" }, warning: { main: "#e9b95c" }, error: { main: "#ff8a80" },
      text: { primary: text, secondary: muted }, gray: { 50: panel, 100: line }, border: { dark: line, light: line },
    },
    schema: { linesColor: line, nestedBackground: panel, typeNameColor: muted, requireLabelColor: "#ff8a80" },
    typography: { ...theme.typography, code: { color: "#ff8a80", backgroundColor: panel }, links: { color: link } },
    sidebar: { backgroundColor: panel, textColor: text, activeTextColor: link },
    rightPanel: { backgroundColor: "#101317", textColor: text, servers: { overlay: { backgroundColor: panel, textColor: text }, url: { backgroundColor: page } } },
    codeBlock: { backgroundColor: panel },
    fab: { backgroundColor: panel, color: link },
  }));
}
