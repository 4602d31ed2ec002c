package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
)

// countFrames has ffprobe decode the video of a recording. A recording without any gives 0.
func countFrames(ctx context.Context, file string) (int, error) {
	out, err := ask(ctx, "ffprobe", "-v", "quiet", "-count_frames", "-select_streams", "v:0",
		"-show_entries", "stream=nb_read_frames", "-of", "json", "-i", file)
	if err != nil {
		return 0, fmt.Errorf("decode what arrived: %w", err)
	}
	var answer struct {
		Streams []struct {
			Frames string `json:"nb_read_frames"`
		} `json:"streams"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return 0, fmt.Errorf("decode what arrived: ffprobe answered %q: %w", out, err)
	}
	if len(answer.Streams) == 0 {
		return 0, nil
	}
	frames, err := strconv.Atoi(answer.Streams[0].Frames)
	if err != nil {
		return 0, nil //nolint:nilerr // ffprobe says N/A if it decoded nothing
	}
	return frames, nil
}
